"""A whole run: check the settings, plan the chain of tables, make each one complete, leave model, evaluation and report."""
