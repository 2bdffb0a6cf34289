#!/bin/sh
# placeholder until merged
exec "$@"
