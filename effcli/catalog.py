"""Everything that can be swapped by name, one line each. Imports nothing heavy.

A model, optimizer or schedule is entered by its settings class, which says in
`place` what it builds. A training method is entered by the settings of its command. A corpus
source, a tokenizer and a tracker are entered by the class that opens them, a part of a
selection by what it is.
"""

from effcli.registry import Registry

MODELS = Registry(
    "model",
    {
        "gpt": "effcli.settings.model:GPTSettings",
        "low-bit": "effcli.settings.model:LowBitSettings",
        "phase": "effcli.settings.phase:PhaseSettings",
    },
)

METHODS = Registry(
    "method",
    {
        "aql": "effcli.settings.aql:AqlSettings",
        "baseline": "effcli.settings.baseline:BaselineSettings",
        "distill": "effcli.settings.distill:DistillSettings",
        "qllm": "effcli.settings.qllm:QllmSettings",
    },
)

SELECTORS = Registry(
    "selector",
    {
        "auto": "effcli.engine.selection.selectors:AUTO",
        "random": "effcli.engine.selection.selectors:RANDOM",
        "dedup": "effcli.engine.selection.selectors:DEDUP",
        "ratio": "effcli.engine.selection.selectors:RATIO",
        "excess": "effcli.engine.selection.selectors:EXCESS",
        "uncertainty": "effcli.engine.selection.selectors:UNCERTAINTY",
        "loss": "effcli.engine.selection.selectors:LOSS",
    },
)

UNCERTAINTIES = Registry(
    "uncertainty",
    {
        "laplace": "effcli.engine.selection.laplace:Laplace",
        "ensemble": "effcli.engine.selection.ensemble:Ensemble",
        "mc-dropout": "effcli.engine.selection.dropout:Dropout",
        "entropy": "effcli.engine.selection.entropy:Entropy",
    },
)

CURRICULA = Registry(
    "curriculum",
    {
        "off": "effcli.engine.selection.competence:off",
        "linear": "effcli.engine.selection.competence:linear",
        "root": "effcli.engine.selection.competence:root",
        "exponential": "effcli.engine.selection.competence:exponential",
        "stages": "effcli.engine.selection.stages:Stages",
    },
)

POLICIES = Registry(
    "policy",
    {
        "fixed": "effcli.engine.selection.policy:Fixed",
        "exp3": "effcli.engine.selection.policy:Exp3",
        "bandit": "effcli.engine.selection.policy:Exp3",  # the same by its other name
        "learned": "effcli.engine.selection.policy:Learned",
    },
)

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "effcli.settings.optim:AdamWSettings",
        "muon": "effcli.settings.optim:MuonSettings",
        "sgd": "effcli.settings.optim:SGDSettings",
    },
)

SCHEDULES = Registry(
    "schedule",
    {
        "constant": "effcli.settings.schedule:ConstantSettings",
        "cosine": "effcli.settings.schedule:CosineSettings",
        "wsd": "effcli.settings.schedule:WsdSettings",
    },
)

SOURCES = Registry(
    "source",
    {
        "grammar": "effcli.engine.data.grammar:Grammar",
        "grammar-noisy": "effcli.engine.data.grammar:NoisyGrammar",
        "hub": "effcli.engine.data.hub:Hub",
        "local": "effcli.engine.data.local:Local",
        "python": "effcli.engine.data.stdlib:StandardLibrary",
    },
)

TOKENIZERS = Registry(
    "tokenizer",
    {
        "bpe": "effcli.engine.data.bpe:train",
        "bytes": "effcli.engine.data.tokenizers:byte_tokenizer",
        "cl100k": "effcli.engine.data.tokenizers:published",
        "gpt2": "effcli.engine.data.tokenizers:published",
        "like": "effcli.engine.data.corpus:tokenizer_of",
        "o200k": "effcli.engine.data.tokenizers:published",
    },
)

TRACKERS = Registry(
    "tracker",
    {
        "tensorboard": "effcli.engine.runs.trackers:TensorBoard",
        "trackio": "effcli.engine.runs.trackers:Trackio",
        "wandb": "effcli.engine.runs.trackers:Wandb",
    },
)
