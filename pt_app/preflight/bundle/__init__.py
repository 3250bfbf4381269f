"""`judge bundle`: one archive that installs and runs where there is no network at all."""
