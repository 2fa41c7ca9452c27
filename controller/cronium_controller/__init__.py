"""What runs on the operator's machine: it reaches hosts over SSH, puts the runner there and submits executions."""
