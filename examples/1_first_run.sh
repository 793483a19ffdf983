#!/bin/sh
# From nothing to a report in about two minutes on two cores: text, a trained model, its cost.
set -e
eff prepare                                   # the text that is on every machine
eff baseline --tokens 500k --out runs/first   # a small model on it
eff generate runs/first "def " --max-new-tokens 80
eff report runs/first                         # the same report again, from the folder alone
echo "now open runs/first/report.html"
