#!/bin/bash
# Runs every fuzz target of the module for the given time each.
set -euo pipefail
cd "$(dirname "$0")/../.."
grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -r -n 1 dirname | sort -u | while read -r dir; do
    sed -nE 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/p' "$dir"/*_test.go | while read -r target; do
        echo "== $dir $target"
        go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-10s}" "$dir" </dev/null
    done
done
