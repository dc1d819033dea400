"""Load a student where this package is not installed: it is a stock checkpoint of transformers.

    python examples/load_student.py photo.jpg another.jpg --student runs/mine/student

Compares the images with the first one, and writes one feature vector for each of them.
"""

import argparse

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--student", default="runs/quickstart/hgkd/student", help="a run's student/, or a Hub id")
    parser.add_argument("--output", default="features.safetensors")
    args = parser.parse_args()

    model = AutoModel.from_pretrained(args.student).eval()
    processor = AutoImageProcessor.from_pretrained(args.student)
    images = [Image.open(path).convert("RGB") for path in args.images]
    with torch.no_grad():
        outputs = model(**processor(images, return_tensors="pt"), output_hidden_states=True)

    # The maps of all scales, for segmentation or detection; and one vector for the whole image.
    maps = [tuple(hidden_state.shape[1:]) for hidden_state in outputs.hidden_states]
    features = outputs.pooler_output.flatten(1)
    print(f"{type(model).__name__}: maps of {', '.join(map(str, maps))}, features of {features.shape[1]}")
    for path, cosine in zip(args.images, torch.cosine_similarity(features[:1], features)):
        print(f"{cosine:6.3f}  {path}")
    save_file({"features": features}, args.output)
    print(f"features: {args.output}")


if __name__ == "__main__":
    main()
