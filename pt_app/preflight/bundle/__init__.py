"""Write one archive that installs and runs without any network (`judge bundle`)."""
