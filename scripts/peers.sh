#!/usr/bin/env bash
# Unpacks the programs that the benchmark holds SmolVM against, and those that make
# its load, with the libraries that they lack, into a directory of the user's.
# Nothing is installed and no service starts. Touches the network only if something
# is missing. Prints the directory, beside which the file versions says what is in it.
set -euo pipefail

packages=(
  iperf3 libiperf0 libsctp1                  # load: throughput
  wrk libluajit-5.1-2                        # load: HTTP requests
  openssh-client openssh-server libwrap0     # ssh -L
  docker.io                                  # docker-proxy
  socat passt
  skopeo umoci libgpgme11 libassuan0 libdevmapper1.02.1 # images from registries
)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/smolvm-bench

# The list of packages is written last, so a directory without it is half made.
if [ "$(cat "$dir/packages" 2>/dev/null)" != "${packages[*]}" ]; then
  rm -rf "$dir"
  mkdir -p "$dir/archives"
  cd "$dir/archives"
  echo "fetching ${packages[*]}" >&2
  # apt's own user may not write here, so it is told to fetch as ours.
  fetch() { apt-get -q -o APT::Sandbox::User="$(id -un)" download "${packages[@]}" >/dev/null; }
  if ! fetch 2>/dev/null; then # the lists of packages are old, or were never fetched
    apt-get -q update >/dev/null
    fetch
  fi
  for archive in *.deb; do
    dpkg -x "$archive" "$dir/root"
    dpkg-deb -W --showformat '${Package} ${Version}\n' "$archive" >>"$dir/versions"
  done
  rm -rf "$dir/archives"
  echo "${packages[*]}" >"$dir/packages"
fi
echo "$dir/root"
