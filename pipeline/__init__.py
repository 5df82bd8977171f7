"""The core: one room per stage, in the order in which data flows. Needs no prefect."""
