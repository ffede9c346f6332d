"""The lab: train real models on real text, and compare warm-up rules (extra `lab`, command `warmgap`)."""
