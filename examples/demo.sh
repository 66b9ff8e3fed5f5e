#!/usr/bin/env bash
# The consumer on a conversation stream that changes: `make demo` calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
ebbtide=.venv/bin/ebbtide
folder=run/demo
rm -rf "$folder" && mkdir -p "$folder"

echo "Six conversations whose topics shift and return:"
"$ebbtide" generate --scenario recurring --streams 6 --events 150 --out "$folder/talk.jsonl" --truth "$folder/truth.jsonl"
echo
echo "The consumer, with real sentence embeddings (all-MiniLM-L6-v2):"
"$ebbtide" run --source "file:$folder/talk.jsonl" --backbone minilm --shadow none \
  --state "sqlite:///$folder/state.db" --sink "jsonl:$folder/out.jsonl" --tape "$folder/tape" --metrics-port 0
echo "One record of $folder/out.jsonl:"
sed -n 60p "$folder/out.jsonl"
echo
echo "What it came to, as a page to open in a browser (no network needed) and as a picture for a slide:"
"$ebbtide" report "$folder/tape" --truth "$folder/truth.jsonl" --state "sqlite:///$folder/state.db" \
  --out "$folder/report.html" --png "$folder/report.png"
echo
echo "Next: $ebbtide inspect --state sqlite:///$folder/state.db"
