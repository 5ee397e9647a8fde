"""The card of a manifest: what a reader must know before trusting the model, as types. All of it was measured."""

from saccade.frozen import Frozen, Sha256


class ScoreQuality(Frozen):
    """How good scores are as probabilities."""

    nll: float
    """Mean negative log-likelihood of the true label, in nats."""
    brier: float
    """Mean over pictures of the squared error summed over labels, from 0 to 2 (Brier 1950)."""
    ece: float
    """Expected calibration error of the highest score, 15 bins of equal width (Guo et al. 2017)."""


class Evaluation(Frozen):
    """What every picture of a split was answered, each of one label."""

    split: str
    data_sha256: Sha256
    """Fingerprint of the pictures: of an image folder, of their names and sizes."""
    pictures: int
    correct: int
    top1: float
    interval95: tuple[float, float]
    """Wilson's, of `top1`."""
    top5: float | None
    """None where there are no more than five labels."""
    per_class: tuple[tuple[int, int], ...]
    """(pictures, correct) of each label, in their order."""
    raw: ScoreQuality
    """With temperature 1."""
    served: ScoreQuality
    """With the manifest's temperature: what callers get."""
    through: str


class Calibration(Frozen):
    """Where the manifest's temperature comes from: least NLL on these pictures.

    An evaluation of the same pictures (`data_sha256`) is one of what was fitted to them, and every text says so.
    """

    split: str
    data_sha256: Sha256
    pictures: int
    raw: ScoreQuality
    served: ScoreQuality


class Cost(Frozen):
    """Time a picture through ONNX Runtime alone, labels and every map computed, in milliseconds: of several rounds, the
    least of their medians, since whatever else runs on the machine only adds to it.
    """

    batch: int
    threads: int
    milliseconds: float
    provider: str
    hardware: str


class Training(Frozen):
    """What the weights cost."""

    epochs: int
    """Of the whole run."""
    seconds: float
    hardware: str
    best_epoch: int | None = None
    """After which the weights are those of the bundle: of all epochs the best one on held-out pictures."""


class Variant(Frozen):
    """What a variant lost against its parent, on pictures that it was not made with."""

    split: str
    pictures: int
    parent_top1: float
    top1: float
    same_label: float
    """Share of the pictures that both give the same label."""
    logits: float
    """Mean square of their difference from the parent's over the mean square of those, its root."""
    maps: dict[str, float]
    """Map -> its Spearman rank correlation with the parent's, mean over pictures; of the class map, of the parent's
    first label; `attention` for the weights of all layers, `attention, least layer` for the layer that agrees least."""
    calibrated_on: str
    in_float: tuple[str, ...]
    """Weights of the layers that a measurement left in float32; the head always is."""
    bytes: int
    """Of graph and weights; `parent_bytes` of the parent's."""
    parent_bytes: int
    anyway: bool = False
    """Written whatever it loses: it is not held to its parent's labels, logits and maps."""


class Card(Frozen):
    """What a reader must know before trusting the model."""

    summary: str
    license: str
    parameters: int
    macs: int | None = None
    """Multiply-accumulates a picture; None for a model from elsewhere."""
    evaluation: tuple[Evaluation, ...] = ()
    """One a split, of each data set."""
    calibration: Calibration | None = None
    cost: tuple[Cost, ...] = ()
    training: Training | None = None
    variant: Variant | None = None
    limits: str = ""
