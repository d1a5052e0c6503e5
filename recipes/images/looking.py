"""What can be asked of embed.py and explain.py: a field is an option and a key of a YAML file."""

from dataclasses import dataclass, field

from commandline import UsageError, check_model_name, option

FEATURES = ("texture", "cls", "mean", "grid")
PLOTS = ("none", "pca")
METHODS = ("occlusion", "rollout", "surprise")


@dataclass
class EmbedArguments:
    """Which images, which features."""

    corpus: str = field(
        default="speckle",
        metadata={"help": "speckle, busi, pneumonia, covid_ct, gbcu, a folder of images or Parquet, or a Hub id."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the download, for a corpus given by name."})
    split: str | None = field(default=None, metadata={"help": "Split to read; train if there is one."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images, if there are several."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the labels, if a table (CSV, Parquet, Hub) has another name for it; none: without "
            "labels."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column of the patients, if a table has another name for it; none: without patients."},
    )
    bad_images: str = field(
        default="error", metadata={"help": "error: stop at an unreadable file; skip: leave it out, named and counted."}
    )
    white_level: float | None = field(default=None, metadata={"help": "Grey value of white, as for pretrain.py."})
    features: str = field(default="texture", metadata={"help": f"What to compute: {', '.join(FEATURES)}."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Encoder, for features cls, mean and grid."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the encoder on the Hub."})
    batch_size: int = field(default=64, metadata={"help": "Images at once, for an encoder."})
    plot: str = field(default="none", metadata={"help": "pca: picture of the first two components, by label."})
    neighbours: int = field(default=0, metadata={"help": "Nearest images to find of each, by an encoder. 0: none."})
    levels: int = field(default=32, metadata={"help": "Number of grey levels of the co-occurrence matrices."})
    distances: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "Distances between the pixels of a pair, in pixels."}
    )
    output_dir: str = field(default="runs/features", metadata={"help": "Receives features.parquet and config.yaml."})

    def __post_init__(self):
        if self.features not in FEATURES:
            raise UsageError(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        if (self.model_name_or_path is None) != (self.features == "texture"):
            raise UsageError(
                f"model_name_or_path is needed for the features cls, mean and grid, and only there; got features "
                f"{self.features} and model_name_or_path {self.model_name_or_path}"
            )
        check_model_name(self.model_name_or_path)
        if self.plot not in PLOTS:
            raise UsageError(f"plot must be one of {', '.join(PLOTS)}, got {self.plot!r}")
        if self.neighbours < 0 or (self.neighbours and self.features == "texture"):
            raise UsageError(
                f"neighbours must be at least 0, and 0 for the features texture, got {self.neighbours} for "
                f"{self.features}"
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.levels < 2:
            raise UsageError(f"levels must be at least 2, got {self.levels}")
        if not self.distances or min(self.distances) < 1:
            raise UsageError(f"distances must be whole pixels of at least 1, got {self.distances}")


@dataclass
class ExplainArguments:
    """Which model, which images."""

    model_name_or_path: str | None = option(
        None, "Export of finetune.py, or any ViT or BEiT with a head for images; for surprise, export of pretrain.py."
    )
    model_revision: str = option("main", "Branch, tag or commit of the model on the Hub.")
    corpus: str = option("folder", "A folder of images or Parquet, a known corpus (with data_dir), or a Hub id.")
    data_dir: str | None = option(None, "Folder of the download, for a corpus that is given by name.")
    split: str | None = option(None, "Split to read; train if there is one.")
    fold: str | None = option(
        None,
        "Draw images of the test part of this fold of a prepared corpus; that of the model's training if left out.",
    )
    image_column: str | None = option(None, "Column of the images, if there are several.")
    bad_images: str = option("error", "error: stop at an unreadable file; skip: leave it out, by name.")
    white_level: float | None = option(None, "Grey value of white, as for pretrain.py; the model's if left out.")
    output_dir: str = option("runs/overlays", "Receives one picture per image.")
    method: str = option(
        "occlusion",
        "occlusion (of one class; slower), rollout (of attention; the same for all), or surprise (by an encoder's "
        "texture head).",
    )
    target: str | None = option(None, "Class to explain, for occlusion; the answer if left out.")
    window: int | None = option(None, "Side of the occluding window in pixels; two patches if left out.")
    stride: int | None = option(None, "Step of the window in pixels; one patch if left out.")
    max_images: int = option(16, "Images to draw; of more, some of each class, evenly spread.")

    def __post_init__(self):
        if self.model_name_or_path is None:
            raise UsageError("model_name_or_path is needed: an export of finetune.py, for surprise one of pretrain.py")
        check_model_name(self.model_name_or_path)
        if self.method not in METHODS:
            raise UsageError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.max_images < 1:
            raise UsageError(f"max_images must be at least 1, got {self.max_images}")
        for name in ("target", "window", "stride"):
            if getattr(self, name) is not None and self.method != "occlusion":
                raise UsageError(f"{name} is for method occlusion, got method {self.method!r}")
