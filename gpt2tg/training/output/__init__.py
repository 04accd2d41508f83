"""The output directory of a run: checkpoints that survive a kill, the published model, records, locks."""
