#!/bin/sh
# Runs in a lab host, in the folder that holds the stand-ins: builds and installs them, and starts the cards.
set -eu
mkdir -p /usr/local/lib/lab-gpus /etc/lab-gpus/faults
gcc -Wall -Wextra -Werror -O2 -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1 nvml.c
gcc -Wall -Wextra -Werror -O2 -shared -fPIC -o /usr/local/lib/lab-gpus/device.so device.c -ldl -pthread
install -m 755 play kernel /usr/local/lib/lab-gpus/
install -m 644 cards /etc/lab-gpus/cards
install -m 644 lab-gpu@.service /etc/systemd/system/lab-gpu@.service
ldconfig
systemctl daemon-reload
index=0
grep -v '^#' cards | cut -d'|' -f1 | while read -r uuid; do
    printf 'LAB_GPU_UUID=%s\nLAB_GPU_PORT=%s\n' "$uuid" $((50052 + index)) > "/etc/lab-gpus/card$index.env"
    systemctl enable -q "lab-gpu@$index"
    systemctl restart "lab-gpu@$index"
    index=$((index + 1))
done
