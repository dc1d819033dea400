"""Tiny random teachers of every kind, all of whose weights matter."""

import torch
import transformers as tf

TINY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 3}
VIT = {**TINY, "image_size": 64, "patch_size": 16}
MAE = {
    **VIT,
    "decoder_hidden_size": 24,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "decoder_num_hidden_layers": 3,
}
TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 8}
DUAL = {"text_config": TEXT, "vision_config": VIT}
HIERARCHICAL = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}

BUILD = {
    "vit": lambda: tf.ViTModel(tf.ViTConfig(**VIT)),
    "vit_classifier": lambda: tf.ViTForImageClassification(tf.ViTConfig(**VIT)),
    "deit": lambda: tf.DeiTModel(tf.DeiTConfig(**VIT)),
    "beit": lambda: tf.BeitModel(tf.BeitConfig(**VIT, use_relative_position_bias=True, use_mask_token=True)),
    "data2vec": lambda: tf.Data2VecVisionModel(tf.Data2VecVisionConfig(**VIT, use_relative_position_bias=True)),
    "vit_mae": lambda: tf.ViTMAEModel(tf.ViTMAEConfig(**MAE)),
    "vit_mae_pretraining": lambda: tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**VIT)),
    "dinov2_registers": lambda: tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**VIT)),
    "dinov3": lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VIT, num_register_tokens=2)),
    "clip": lambda: tf.CLIPModel(tf.CLIPConfig(**DUAL)),
    "clip_vision": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**VIT)),
    "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(**DUAL)),
    "siglip_vision": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**VIT)),
    "ijepa": lambda: tf.IJepaModel(tf.IJepaConfig(**VIT)),
    "vit_msn": lambda: tf.ViTMSNModel(tf.ViTMSNConfig(**VIT)),
    "swin": lambda: tf.SwinModel(tf.SwinConfig(**HIERARCHICAL, image_size=64, patch_size=4, window_size=4)),
    "hiera": lambda: tf.HieraModel(
        tf.HieraConfig(**HIERARCHICAL, image_size=[64, 64], num_query_pool=1, masked_unit_attention=[True, False])
    ),
}
FLAT = [name for name in BUILD if name not in ("swin", "hiera")]


def build(name, seed=0):
    """A tiny random model whose every weight (positions and mask tokens too, mostly zero by default) matters."""
    torch.manual_seed(seed)
    model = BUILD[name]()
    for key, parameter in model.named_parameters():
        if any(part in key for part in ("position", "pos_embed", "token", "relative", "projection", "patch_emb")):
            torch.nn.init.normal_(parameter, std=0.2)
        elif "lambda" in key or "layer_scale" in key:
            torch.nn.init.ones_(parameter)
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def images(*size, batch=2, seed=1):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
