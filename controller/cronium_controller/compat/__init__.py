"""Modules for programs that were written for another SSH client: they run with their imports changed.

`ringrift` is the client, `homelab` the executor. What is here is theirs alone; all else is `cronium_controller`'s.

In both, `$NAME`, `${NAME}` and a leading `~` or `~user` mean in `cwd`, `env`, `venv_activate` and `log_file` what they
mean to a shell on the host, as those programs put them into one. Command substitution, patterns and words never do.
"""
