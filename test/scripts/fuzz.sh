#!/bin/bash
# Runs every fuzz target of the module for the given time each. Minimizing is
# bounded, or large inputs leave no time for anything else.
set -euo pipefail
cd "$(dirname "$0")/../.."
grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -r -n 1 dirname | sort -u | while read -r dir; do
    sed -nE 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/p' "$dir"/*_test.go | while read -r target; do
        echo "== $dir $target"
        go test -run '^$' -fuzz "^$target\$" -fuzzminimizetime 20x -fuzztime "${1:-10s}" "$dir" </dev/null
    done
done
