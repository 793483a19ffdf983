#!/bin/sh
# A phase model beside the GPT of its size: the same text in the same order, what phases do, what it writes.
set -e
eff prepare
eff qllm train --arch gpt --tokens 500k --out runs/gpt
eff qllm train --tokens 500k --out runs/phase  # its report has the GPT's loss beside its own
eff qllm inspect runs/phase
eff qllm generate "def " --run runs/phase --max-new-tokens 80
echo "now open runs/phase/report.html and runs/phase/inspect.html"
