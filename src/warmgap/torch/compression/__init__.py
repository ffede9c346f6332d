"""Compressed gradients with error feedback: ||EF21|| and ||EF21-SGDM||, in l2 and in any norm of ours.

    from warmgap.torch.compression import ErrorFeedback, NormalizedGD, TopK

    feedback = ErrorFeedback(model, TopK(0.01), momentum=0.9)
    optimizer = NormalizedGD(model.parameters(), lr=0.1)
    feedback.attach(optimizer)  # or parallel.register_comm_hook(feedback, ErrorFeedback.hook)

Source: arXiv 2410.16871 (normalized error feedback), arXiv 2510.00643 (LMO steps).
"""

from warmgap.torch.compression._state import Traffic
from warmgap.torch.compression.compressors import (
    Compressor,
    Identity,
    LowRank,
    ScaledSign,
    TopK,
    compress,
    message_bytes,
)
from warmgap.torch.compression.feedback import ErrorFeedback
from warmgap.torch.compression.normalized import NormalizedGD
from warmgap.torch.compression.simulated import SimulatedWorkers

__all__ = [
    "Compressor",
    "ErrorFeedback",
    "Identity",
    "LowRank",
    "NormalizedGD",
    "ScaledSign",
    "SimulatedWorkers",
    "TopK",
    "Traffic",
    "compress",
    "message_bytes",
]
