"""Learn from a larger model beside the data (Hinton et al. 2015): its whole distribution over the next token says more
than the token that came.

Dimensions: B rows, T tokens, V vocabulary.
"""

import torch
from torch.nn import functional

from ..data.batches import IGNORED


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.LongTensor,
    weight: float,
    temperature: float,
) -> torch.Tensor:
    """Sum over the scored tokens of (1 - weight) * cross-entropy + weight * temperature² * KL(teacher ‖ student).

    Args:
        student_logits, teacher_logits: [B, T, V].
        labels: [B, T], shifted; -100 is not scored.
        weight: share of the teacher in [0, 1].
        temperature: both distributions are softened by it; its square keeps the gradients' size.

    Returns:
        Nats, a scalar.
    """
    scored = labels != IGNORED
    precision = torch.promote_types(student_logits.dtype, torch.float32)  # fp32 at least
    student, teacher = student_logits[scored].to(precision), teacher_logits[scored].to(precision)
    from_data = functional.cross_entropy(student, labels[scored], reduction="sum")
    from_teacher = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return (1 - weight) * from_data + weight * temperature**2 * from_teacher
