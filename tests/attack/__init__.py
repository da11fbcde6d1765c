"""Attacks on the command, on this machine alone: what fails, is killed, is damaged, linked elsewhere or hostile.

python -m tests.attack              a sample, in minutes
python -m tests.attack --thorough   at least 5,000
python -m tests.attack --only links --show
"""
