"""The pieces of a report, each with what its figures mean."""

from pydantic import BaseModel, ConfigDict


class Piece(BaseModel):
    """Facts that do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HeldOutResult(Piece):
    """The held-out text, looked at after the last step."""

    loss: float
    perplexity: float
    bits_per_byte: float
    windows: int
    entropy_bits_per_byte: float | None = None


class Floors(Piece):
    """Loss of counting alone, on the same windows."""

    unigram: float
    bigram: float
    trigram: float


class Energy(Piece):
    """Joules, and where the number comes from; none where two ways would have to be mixed."""

    joules: float | None
    source: str


class Tuning(Piece):
    """What was spent on finding the settings, which no other figure includes."""

    trials: int
    tokens: int
    flops: float
    seconds: float
    chosen: dict[str, float]
    losses: list[float | None]
    """Held-out loss of every trial; none where it diverged."""


class Selection(Piece):
    """What a selective run read, and what choosing it cost."""

    ratio: float
    """Share of the pool that was to be read."""
    mode: str
    """`file`: trusted text was given; `alike`: the pool is like held-out text; else `none`."""
    unique_tokens: int
    overhead_in_loop: float
    """Seconds of choosing during training, as a share of those of training."""
    overhead_all_in: float
    """With those of scoring the corpus before."""
    flops_in_loop: float
    """The same in FLOPs."""
    flops_all_in: float
    contamination: float | None
    """Estimated share of the pool that trusted text is not like."""
    duplicates_removed: int
    """Tokens of copies that could not be read."""
    clusters: int
    cluster_entropy: float | None
    """Of the last choice, in nats."""
    precision: float | None
    """Share of the chosen tokens that is labeled as good."""
    reused: int | None = None
    """Candidates whose uncertainty an earlier run had kept; none where nothing is reused."""


class Codes(Piece):
    """What the codes of all layers together did, by a look in the low-bit phase."""

    step: int
    zeros: float
    """Share of the weights that is read back as zero."""
    dead_zone: float
    """Share so near to a threshold that noise decides the code."""
    flips: float | None
    """Share whose code differs from that of the last look; none at the first."""
    empty_rows: int
    """Outputs that do not depend on the input."""


class Student(Piece):
    """What a distillation has made, measured from its file."""

    bits: float
    is_trained_in_low_bits: bool
    """Else it was rounded after training."""
    file: str
    """In the run's folder."""
    file_bytes: int
    bytes: dict[str, int]
    """Of the file, by what they are for."""
    linear_bits_per_weight: float | None
    """Of the blocks' matrices, scales included."""
    ratio_linear: float | None
    """Bytes of these matrices in float32 over those in the file."""
    ratio_total: float
    """The same of all weights and the whole file."""
    ratio_linear_bf16: float | None
    ratio_total_bf16: float
    loss: float
    """Of the file, read again, on a part of the held-out text; in nats per token."""
    roundtrip_gap: float
    """What packing has cost of it."""
    logit_gap: float
    """The largest difference of a logit from those of the trained model, tables rounded."""
    agreement: float
    """Share of positions at which both find the same token most likely."""
    weight_error: float | None
    """Mean squared error of the rounded weights over their mean square."""
    teacher_loss: float | None = None
    """On all held-out text."""
    teachers: list[str] = []
    codes: list[Codes] = []
    """Every look, for a student that was trained in low bits."""


class Spread(Piece):
    """How a figure is distributed over windows of held-out text."""

    mean: float
    p5: float
    p95: float
    p99: float


class CorpusText(Piece):
    """The same figures of held-out text, in windows as long as the texts."""

    windows: int
    rep_4: Spread
    rep_16: Spread
    loop_fraction: Spread
    top_1: Spread
    distinct_2: Spread
    gzip_ratio: Spread
    zipf: Spread
    self_bleu: float
    """Of as many windows as there are texts."""


class Texts(Piece):
    """How much the model's own texts repeat themselves: means over them."""

    texts: int
    tokens: int
    """Of each text."""
    rep_4: float
    rep_16: float
    loop_fraction: float
    top_1: float
    distinct_2: float
    gzip_ratio: float
    zipf: float
    self_bleu: float
    collapsed: bool
    corpus: CorpusText


class Hybrid(Piece):
    """What the parts of `--hybrid` did, and what they cost."""

    overhead: float
    """FLOPs of probes, as a share of those of training."""
    multiplier_mean: float | None = None
    """Of the learning rate, by the controller."""
    decisions: int | None = None
    adopted: int | None = None
    constraint_activation_rate: float | None = None
    """Share of all moves of tensors that the trust region cut."""
    final_radius: float | None = None


class Size(Piece):
    """A size of a model that grows; but for the first one, it computed what the one before did."""

    step: int
    """The last one before it."""
    tokens: int
    """Of training, until then."""
    width: int
    layers: int
    difference: float | None
    """Of logits from those before, the largest, as a share of the largest; none at the start."""
    held_out: float | None
    """Loss at the last look before it; none where nobody looked."""


class PhaseResult(Piece):
    """What the phases of a model do on held-out text: means over text, heads and layers."""

    coherence: dict[str, float]
    """Of phases so many tokens apart, -1..1."""
    mean_coherence: float
    """Of all pairs of positions."""
    stability: float | None = None
    """How steady phases are: length of a mean that moves with them by sixteenths, 0..1."""
    resultant: float | None = None
    """Length of the mean of 16 tokens' phasors, 0..1."""
    semantic_coherence: float | None = None
    """Of pairs of positions that share a concept, -1..1; none without concepts."""
    local_energy: float
    entanglement: float
    """1: both halves of a text say one and the same; 0: as many things as can be told apart."""
    half_similarity: float
    frame_potential: float | None
    """Mean squared overlap of keys: what a memory confuses; none without memories."""
    welch_bound: float | None
    """The least that it can be."""
    rotation_std: float | None
    """Spread of the phase increments, in radians; none where nothing turns."""
    half_lives: list[float]
    """Of the memories, where the text does not say otherwise; in tokens."""
    imaginary_share: float
    state_floats: int
    """Numbers that are kept of one text, however long."""
    concepts_used: float | None
    """Share of the codes that are in use; none without them."""


class Spoken(Piece):
    """Held-out text in one language, marks not counted."""

    loss: float
    """In nats per token."""
    bits_per_byte: float
    tokens: int


class Languages(Piece):
    """How well a model speaks each of its languages, and whether it means the same in all."""

    held_out: dict[str, Spoken]
    turned: dict[str, float] | None = None
    """By how much what all share is turned into each, root mean square, in radians."""
    pairs: int | None = None
    """Rows of texts that mean the same, none of which was trained on."""
    retrieval: dict[str, float] | None = None
    """Share of these texts whose nearest in the other language means the same."""


class Beside(Piece):
    """The GPT of equal size that read the same text in the same order."""

    run: str
    parameters: int
    held_out: HeldOutResult
