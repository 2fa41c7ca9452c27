#!/bin/sh
# The smallest job.
echo "hello from $(uname -n)"
