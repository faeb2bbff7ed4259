"""What training minimises: DPO with a length margin, SFT, and their sum."""
