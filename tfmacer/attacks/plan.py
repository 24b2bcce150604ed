"""How certificates are attacked. No TensorFlow."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How an image is attacked, and how a flip is confirmed.

    Attributes:
      attack: `pgd` or `ddn`; the former follows the norm of the radii, the latter knows l2 only.
      steps: of the attack, 1 or more.
      num_noise: noisy copies over which the gradient is averaged, 1 or more.
      n: draws of PREDICT.
      alpha: probability, for each image, that some confirmation of it is wrong.
      clip: whether attacked pixels stay in [0, 1]. Certificates speak of all changes; under
        `rounded_gaussian` noise pixels are of 8 bits in any case.
      seed: of the noise of attacks and confirmations.
    """

    attack: str = "pgd"
    steps: int = 20
    num_noise: int = 32
    n: int = 2000
    alpha: float = 0.001
    clip: bool = False
    seed: int = 0
