"""Prefect around the core: flows, tasks, the embedded server. The only room that imports prefect.

Importing `flows` itself imports nothing heavy; `flows.run` is where Prefect comes in.
"""
