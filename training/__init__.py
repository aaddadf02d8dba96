"""Tasks and data, quantisers, the student, distillation, the trainer. Importing it does not import torch."""
