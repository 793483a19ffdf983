"""Ask a teacher about a corpus before training."""

from typing import Any

from effcli.engine.data.corpus import Corpus, locate
from effcli.engine.device import Device
from effcli.engine.records import Notice, Stop, Watch, never, unwatched
from effcli.engine.teaching.cache import Form, Request
from effcli.engine.teaching.making import prepared, reached
from effcli.engine.teaching.teachers import Teachers
from effcli.errors import InputError
from effcli.settings.distill import CacheSettings


def run(settings: CacheSettings, watch: Watch = unwatched, stop: Stop = never) -> dict[str, Any]:
    """What teachers say about all windows of a corpus, made as far as it is not there yet."""
    corpus, device = Corpus.open(locate(settings.data)), Device(settings.device)
    form = Form.parse(settings.cache, corpus.tokenizer.vocab_size)
    if form.mode == "online":
        raise InputError("online keeps nothing of the teacher", "--cache sampled:12 or topk:32")
    how = (corpus.tokenizer, device, lambda text: watch(Notice(text)))
    teachers = Teachers.open(settings.teacher, *how)
    context = settings.context or min(model.context for model in teachers.models)
    request = Request.of(corpus, teachers, form, context)
    every = reached(request, 1, None, 0)
    cache = prepared(request, teachers, every, device, watch, stop)
    return {
        "schema": 1,
        "command": "distill cache",
        "corpus": str(corpus.folder),
        "cache": str(request.folder),
        "form": settings.cache,
        "context": context,
        "windows": cache.count,
        "tokens": cache.count * context,
        "bytes": cache.count * request.window_bytes,
        "flops": cache.made.flops,
        "seconds": cache.made.seconds,
    }
