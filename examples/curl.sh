#!/bin/sh
# What curl asks of a running service (`make serve`): each answer is one line of JSON.
set -eu
URL=${URL:-http://127.0.0.1:8000}
PICTURE=${PICTURE:-$(dirname "$0")/chelsea.jpg}

ask() {
  curl --silent --show-error --fail-with-body "$@"
  echo
}

# Is it ready? What does it serve, and how?
ask "$URL/v2/health/ready"
ask "$URL/v1/models"
ask "$URL/v1/models/cifar10-hybrid-s"

# The picture as it is: labels, and where the model looked
ask --data-binary "@$PICTURE" "$URL/v1/classify?top_k=3"

# What argued for each of the two best classes, and for "frog"
ask --data-binary "@$PICTURE" "$URL/v1/classify?maps=class&classes=topk&top_k=2"
ask --data-binary "@$PICTURE" "$URL/v1/classify?maps=class&classes=frog"

# Every weight of the last attention layer, head by head, for the row that the classifier reads
ask --data-binary "@$PICTURE" "$URL/v1/classify?attention=last&heads=all&rows=pool&maps=none"

# As a form, and as base64 in JSON (through a pipe: it is longer than a command line may be)
ask --form "image=@$PICTURE" "$URL/v1/classify?maps=none"
{ printf '{"image": "'; base64 "$PICTURE" | tr -d '\n'; printf '"}'; } |
  ask --header 'content-type: application/json' --data-binary @- "$URL/v1/classify?maps=none"

# A refusal: one sentence with the bound and the value seen, and a code for programs
curl --silent --data-binary "@$PICTURE" "$URL/v1/classify?top_k=0"
echo
