"""Everything that can be swapped by name, one line each. Imports nothing heavy.

A model, optimizer or schedule is entered by its settings class, which says in
`place` what it builds. A training method is entered by the settings of its command. A corpus
source, a tokenizer and a tracker are entered by the class that opens them.
"""

from effcli.registry import Registry

MODELS = Registry("model", {"gpt": "effcli.settings.model:GPTSettings"})

METHODS = Registry("method", {"baseline": "effcli.settings.baseline:BaselineSettings"})

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "effcli.settings.optim:AdamWSettings",
        "muon": "effcli.settings.optim:MuonSettings",
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
