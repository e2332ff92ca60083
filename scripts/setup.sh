#!/usr/bin/env bash
# Installs the Debian packages that SmolVM and its tests need. Touches the
# network only if one is missing.
set -euo pipefail

packages=(
  qemu-system-x86             # the virtual machines
  mmdebstrap e2fsprogs kmod xz-utils # the default image
  slirp4netns                 # egress for VMs of unprivileged users
  gcc libc6-dev               # the race detector of the tests
  qemu-utils                  # flattens the disks of VMs that were copied often, and reads disks that images are made of
  nftables iproute2 util-linux cpio # attackers and inspectors in the tests
  docker-registry             # what the tests pull images from
  openssh-client rsync        # clients of the guests' SSH servers in the tests
  fdisk                       # disks with partitions in the tests
  busybox-static              # the smallest root filesystem that the tests make an image of
  curl jq                     # what the documentation shows
)

missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "missing packages; as root, run: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
# The tests run their own, on localhost. The package's would serve all networks from now on.
for p in "${missing[@]}"; do
  if [ "$p" = docker-registry ] && [ -d /run/systemd/system ]; then
    systemctl mask docker-registry.service
  fi
done
export DEBIAN_FRONTEND=noninteractive
apt-get -q update >/dev/null
apt-get -q install -y --no-install-recommends "${missing[@]}" >/dev/null
