#!/bin/sh
# A plain run, a random half and a chosen half of the same text, at the same number of tokens.
set -e
eff prepare
eff aql prep                                  # scores it, once; every run below is billed for it
eff baseline --tokens 500k --out runs/plain
eff aql --ratio 0.5 --tokens 500k --selector random --out runs/random
eff aql --ratio 0.5 --tokens 500k --out runs/chosen
eff report runs/plain runs/random runs/chosen
eff aql audit runs/chosen --against runs/plain
