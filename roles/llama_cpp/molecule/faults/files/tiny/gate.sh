# /run/gate-kill: ninja is killed, once. /run/gate-fail: the build fails after 3 s, as long as the file is there.
if [ -e /run/gate-kill ]; then
  rm /run/gate-kill
  pkill -KILL -x ninja
fi
if [ -e /run/gate-fail ]; then
  sleep 3
  echo "the gate is shut"
  exit 1
fi
touch gate.h
