#!/bin/sh
# Fetches files into a folder and checks them: download.sh LIST FOLDER [CURL_CONFIG], where each line of LIST is a SHA-256, a
# path in FOLDER and a URL. A file that is there and right is left alone; one that comes out wrong is removed.
set -eu
list=$1
folder=$2
config=${3:-}
while read -r sum path url; do
    file=$folder/$path
    if [ -e "$file" ] && echo "$sum  $file" | sha256sum -c - >/dev/null 2>&1; then
        continue
    fi
    mkdir -p "$(dirname "$file")"
    echo "$path from $url"
    curl --fail --location --silent --show-error --retry 5 --retry-connrefused ${config:+--config "$config"} \
        --output "$file.part" "$url" </dev/null
    found=$(sha256sum "$file.part" | cut -d ' ' -f 1)
    if [ "$found" != "$sum" ]; then
        rm "$file.part"
        echo "weights.download.files: $path has the SHA-256 $found, not $sum" >&2
        exit 1
    fi
    mv "$file.part" "$file"
done <"$list"
