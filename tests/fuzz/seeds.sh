#!/usr/bin/env bash
# Fills corpus/ with the golden files that are small enough to mutate well.
set -euo pipefail
cd "$(dirname "$0")"
golden=../golden
seed() {
    mkdir -p "corpus/$1"
    for file in "${@:2}"; do
        cp "$file" "corpus/$1/$(printf %s "$file" | tr -c 'A-Za-z0-9.\n' _)"
    done
}
seed safetensors $golden/weights/*.safetensors
seed gguf $golden/weights/*.gguf
seed pickle $golden/weights/*.bin
seed config $golden/parity/*/config.json $golden/config/*
seed index $golden/weights/sharded/*.json $golden/parity/*/*.index.json
seed tokenizer ../../models/dolly-nano/tokenizer.json
seed prompt $golden/README.md
mkdir -p corpus/load
for file in "$golden"/parity/{standard,tied,sequential}/{config.json,model.safetensors}; do
    # The first byte says which file of the directory the rest is.
    case $file in *.json) kind='\0' ;; *) kind='\1' ;; esac
    { printf "$kind"; cat "$file"; } > "corpus/load/$(printf %s "$file" | tr -c 'A-Za-z0-9.\n' _)"
done
