#!/usr/bin/env bash
# Renders every kustomization under manifests/ as `kubectl apply -k` would, without a cluster, and
# fails where one does not render or renders to nothing.
set -euo pipefail

cd "$(dirname "$0")/.."
while IFS= read -r file; do
  directory=$(dirname "$file")
  rendered=$(kubectl kustomize "$directory")
  objects=$(grep -c '^kind: ' <<<"$rendered" || true)
  if [ "$objects" -eq 0 ]; then
    echo "error: $directory renders to no object" >&2
    exit 1
  fi
  echo "$directory: $objects objects"
done < <(find manifests -name kustomization.yaml | sort)
