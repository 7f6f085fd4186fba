#!/usr/bin/env bash
# The three machines of README.md as three processes of this one, in a new folder: rehearse.sh [FOLDER] [PORT]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)}
port=${2:-9092}
mkdir -p "$folder" && cd "$folder"

# Two hospitals whose instruments differ; yours have their files already.
for hospital in a b; do
  awk -v shift="$([ $hospital = a ] && echo 0 || echo 10)" 'BEGIN {
    srand(1 + shift); print "age,pressure,cholesterol,diagnosis"
    for (i = 0; i < 80; i++) {
      age = 30 + 50 * rand(); pressure = 110 + 50 * rand() + shift; cholesterol = 150 + 120 * rand()
      ill = (age - 55) / 15 + (pressure - shift - 135) / 15 + (cholesterol - 210) / 40 > 0
      printf "%.1f,%.1f,%.1f,%s\n", age, pressure, cholesterol, ill ? "ill" : "healthy"
    }
  }' > hospital-$hospital.csv
done

# Each hospital makes its key, and tells the fingerprint that the server admits its request by.
nufed certs init --san localhost
for hospital in a b; do
  fingerprint=$(nufed certs request --name hospital-$hospital | sed -n 's/^fingerprint: //p')
  nufed certs admit hospital-$hospital.csr --fingerprint "$fingerprint"
done

nufed server --config "$here/federation.toml" --listen "127.0.0.1:$port" --resume-or-start &
for hospital in a b; do
  nufed client --server "localhost:$port" --name hospital-$hospital --once \
    --data "csv:hospital-$hospital.csv?label=diagnosis&scale=local" \
    --root-certificates certs/ca.crt --key hospital-$hospital.key \
    --personal-model personal-$hospital.safetensors &
done
wait
nufed predict --model personal-a.safetensors --data 'csv:hospital-a.csv?label=diagnosis' --out predictions.csv
echo "see $folder"
