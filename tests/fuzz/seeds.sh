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
mkdir -p corpus/adapter
for file in "$golden"/adapters/*/adapter_{config.json,model.safetensors}; do
    [ -e "$file" ] || continue
    case $file in *.json) kind='\0' ;; *) kind='\1' ;; esac
    { printf "$kind"; cat "$file"; } > "corpus/adapter/$(printf %s "$file" | tr -c 'A-Za-z0-9.\n' _)"
done
seed parquet $golden/dataset/*.parquet
mkdir -p corpus/jsonl corpus/csv corpus/resume
printf '{"instruction": "Name a colour.", "context": "", "response": "Blue.", "category": "open_qa"}\n\n' > corpus/jsonl/rows
printf 'instruction,context,response,category\r\n"a ""b""\r\nc",,d,open_qa\r\n' > corpus/csv/rows
mkdir -p corpus/packed
printf '{"source":"SOURCE","entries":[{"tensor":"gpt_neox.embed_in.weight","layout":"rows F32","offset":0,"pieces":2,"piece_bytes":128}]}' > corpus/packed/index
# The first byte says which file of the checkpoint the rest is.
printf '\0{"format":1,"step":1,"files":[{"name":"state.json","bytes":2,"sha256":""}]}' > corpus/resume/manifest
printf '\1{"format":1,"step":1,"epoch":1,"row":0,"seed":42,"options":{},"base":"","data":"","best":null,"best_saved":null,"evaluations_since_best":0}' > corpus/resume/state
{ printf '\2\1'; head -c 55 /dev/zero; } > corpus/resume/history
for kind in 3 4; do
    { printf "\\$kind"; cat "$golden/weights/model.safetensors"; } > "corpus/resume/tensors-$kind"
done
