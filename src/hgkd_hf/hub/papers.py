"""What a card says of each method: its name, what it does, its paper, and whose reading of it this is."""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED = "This follows the published formulation."
ABSTRACT = (
    "This is an independent reading of the paper's abstract: what the abstract leaves open is our choice, and listed "
    "below."
)


@dataclass(frozen=True)
class Paper:
    """A paper, as its citation needs it."""

    key: str
    title: str
    authors: str
    year: int
    arxiv: str

    @property
    def bibtex(self) -> str:
        """The BibTeX entry."""
        fields = {
            "title": f"{{{self.title}}}",
            "author": self.authors,
            "year": self.year,
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
        }
        lines = [f"  {name:<13} = {{{value}}}" for name, value in fields.items()]
        return f"@misc{{{self.key},\n" + ",\n".join(lines) + "\n}"


@dataclass(frozen=True)
class MethodNote:
    """A method, as a card speaks of it.

    Attributes:
        name: its short name.
        summary: what the student learned, one sentence but for its subject; "" if nothing is known.
        reading: how this implementation relates to the paper.
        paper: where it comes from.
    """

    name: str
    summary: str = ""
    reading: str = ""
    paper: Paper | None = None


# By the `model_type` of the distiller's config (see `method_of`).
METHOD_NOTES = {
    "fine-tuning": MethodNote("fine-tuning", "learned from labels."),
    "hgkd": MethodNote(
        "H-GKD",
        "learned to predict the features that a frozen vision transformer has of the whole image, without labels.",
        ABSTRACT,
        Paper(
            "wang2023hgkd",
            "Heterogeneous Generative Knowledge Distillation with Masked Image Modeling",
            "Wang, Ziming and Han, Shumin and Wang, Xiaodi and Hao, Jing and Cao, Xianbin and Zhang, Baochang",
            2023,
            "2309.09571",
        ),
    ),
    "spark": MethodNote(
        "SparK",
        "learned to predict the pixels of the hidden cells, without labels and without a teacher.",
        PUBLISHED,
        Paper(
            "tian2023spark",
            "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling",
            "Tian, Keyu and Jiang, Yi and Diao, Qishuai and Lin, Chen and Wang, Liwei and Yuan, Zehuan",
            2023,
            "2301.03580",
        ),
    ),
    "rob": MethodNote(
        "RoB",
        "learned to assign each crop of an image to prototypes as a frozen self-supervised teacher does, without "
        "labels.",
        PUBLISHED,
        Paper(
            "duval2023rob",
            "A Simple Recipe for Competitive Low-compute Self supervised Vision Models",
            "Duval, Quentin and Misra, Ishan and Ballas, Nicolas",
            2023,
            "2301.09451",
        ),
    ),
    "manifold_distillation": MethodNote(
        "Manifold distillation",
        "learned the relations among the patches of a frozen teacher, within and between images, beside the labels.",
        PUBLISHED,
        Paper(
            "hao2022manifold",
            "Learning Efficient Vision Transformers via Fine-Grained Manifold Distillation",
            "Hao, Zhiwei and Guo, Jianyuan and Jia, Ding and Han, Kai and Tang, Yehui and Zhang, Chao and Hu, Han and "
            "Wang, Yunhe",
            2022,
            "2107.01378",
        ),
    ),
    "msdcrd": MethodNote(
        "MSDCRD",
        "learned to match the regions of a frozen teacher's feature map at several scales, by contrast with other "
        "regions and images, beside the labels.",
        ABSTRACT,
        Paper(
            "wang2025msdcrd",
            "Contrastive Representation Distillation via Multi-Scale Feature Decoupling",
            "Wang, Cuipeng and Chen, Tieyuan and Wang, Haipeng",
            2025,
            "2502.05835",
        ),
    ),
    "reviewkd": MethodNote(
        "ReviewKD",
        "learned a frozen teacher's feature maps, level by level with the deeper ones fused in, beside the labels.",
        PUBLISHED,
        Paper(
            "chen2021reviewkd",
            "Distilling Knowledge via Knowledge Review",
            "Chen, Pengguang and Liu, Shu and Zhao, Hengshuang and Jia, Jiaya",
            2021,
            "2104.09044",
        ),
    ),
    "wcord": MethodNote(
        "WCoRD",
        "learned features whose Wasserstein distance from a frozen teacher's is small, beside the labels.",
        "The two terms are the paper's as we know them; critic, negatives of the batch and weights are our reading.",
        Paper(
            "chen2021wcord",
            "Wasserstein Contrastive Representation Distillation",
            "Chen, Liqun and Wang, Dong and Gan, Zhe and Liu, Jingjing and Henao, Ricardo and Carin, Lawrence",
            2021,
            "2012.08674",
        ),
    ),
    "sskd": MethodNote(
        "SSKD",
        "learned a frozen teacher's logits, and how its features relate rotated images to upright ones, beside the "
        "labels.",
        "This follows the published formulation, but without the head that the paper trains for the teacher's "
        "similarities.",
        Paper(
            "xu2020sskd",
            "Knowledge Distillation Meets Self-Supervision",
            "Xu, Guodong and Liu, Ziwei and Li, Xiaoxiao and Loy, Chen Change",
            2020,
            "2006.07114",
        ),
    ),
    "coadvise": MethodNote(
        "Co-advise",
        "learned from labels by its class token, and from two frozen teachers of different inductive bias by two "
        "others.",
        "Tokens and losses are the published ones. The paper's tokens begin as embedded patches, these at random; and "
        "it answers with the mean of three heads, while this stock model answers with the class token's alone.",
        Paper(
            "ren2021coadvise",
            "Co-advise: Cross Inductive Bias Distillation",
            "Ren, Sucheng and Gao, Zhengqi and Hua, Tianyu and Xue, Zihui and Tian, Yonglong and He, Shengfeng and "
            "Zhao, Hang",
            2021,
            "2106.12378",
        ),
    ),
    "kd": MethodNote(
        "Knowledge distillation",
        "learned a frozen teacher's softened logits beside the labels.",
        PUBLISHED,
        Paper(
            "hinton2015kd",
            "Distilling the Knowledge in a Neural Network",
            "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
            2015,
            "1503.02531",
        ),
    ),
    "dkd": MethodNote(
        "Decoupled knowledge distillation",
        "learned a frozen teacher's logits beside the labels, those of the true class apart from the others.",
        PUBLISHED,
        Paper(
            "zhao2022dkd",
            "Decoupled Knowledge Distillation",
            "Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun",
            2022,
            "2203.08679",
        ),
    ),
    "hint": MethodNote(
        "FitNets hints",
        "learned a frozen teacher's feature map beside the labels.",
        PUBLISHED,
        Paper(
            "romero2015fitnets",
            "FitNets: Hints for Thin Deep Nets",
            "Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and Gatta, Carlo "
            "and Bengio, Yoshua",
            2015,
            "1412.6550",
        ),
    ),
    "contrastive": MethodNote(
        "Contrastive distillation",
        "learned to tell which of a frozen teacher's features belongs to its own, beside the labels.",
        "The negatives come from the batch, not from the paper's memory bank.",
        Paper(
            "tian2020crd",
            "Contrastive Representation Distillation",
            "Tian, Yonglong and Krishnan, Dilip and Isola, Phillip",
            2020,
            "1910.10699",
        ),
    ),
    "rcmae": MethodNote(
        "RC-MAE",
        "learned to predict the pixels of the hidden cells as a moving average of itself does, without labels and "
        "without a teacher.",
        "The loss is the published one; the masked CNN in place of the paper's vision transformer is our choice.",
        Paper(
            "lee2022rcmae",
            "Exploring the Role of Mean Teachers in Self-supervised Masked Auto-Encoders",
            "Lee, Youngwan and Willette, Jeffrey and Kim, Jonghee and Lee, Juho and Hwang, Sung Ju",
            2022,
            "2210.02077",
        ),
    ),
    "tinymim": MethodNote(
        "TinyMIM",
        "learned how the tokens in a block of a frozen vision transformer relate to each other, without labels.",
        "Relations and loss are the published ones; the block with the teacher's heads on top of the student, which "
        "stays behind, and CNN students are our choices.",
        Paper(
            "ren2023tinymim",
            "TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models",
            "Ren, Sucheng and Wei, Fangyun and Zhang, Zheng and Hu, Han",
            2023,
            "2301.01296",
        ),
    ),
    "labels": MethodNote("Labels alone", "learned from labels alone, as a baseline of distilled students."),
}


def method_of(config: dict) -> str:
    """The key in `METHOD_NOTES` of a distiller's config: SparK is H-GKD without teacher; baselines share a class."""
    kind = config.get("model_type", "")
    if kind == "hgkd" and not config.get("feature_weight", 1.0):
        return "spark"
    return config.get("objective", "kd") if kind == "kd" else kind
