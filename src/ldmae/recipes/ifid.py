"""iFID of an autoencoder: what lies halfway between its latents, decoded, against held-out images."""

# N held-out images, M training images, C latent channels, h w latent grid

from __future__ import annotations

import torch

from ldmae.contracts import Result
from ldmae.core.autoencoding import decode
from ldmae.core.errors import UserError
from ldmae.core.progress import progress_bar
from ldmae.evaluation.generation import FEWEST_IMAGES
from ldmae.evaluation.ifid import choose_neighbours, nearest_latents, slerp
from ldmae.evaluation.reconstruction import feature_distances, to_uint8
from ldmae.recipes.subject import Subject


@torch.no_grad()
def measure_ifid(subject: Subject) -> list[Result]:
    """Returns `iKID`, and `iFID` where there are enough images, by the names of the network."""
    extractor, config = subject.features, subject.config
    training, latents = subject.train_latents[0], subject.held_out_latents
    if extractor is None or len(training) < 2:
        raise UserError(
            f"iFID needs at least {FEWEST_IMAGES} held-out and 2 training images, got {len(latents)} and "
            f"{len(training)}; give more"
        )
    own = None
    if subject.train is subject.held_out:
        places = {int(row): place for place, row in enumerate(subject.train_drawn)}
        own = torch.tensor([places.get(int(row), -1) for row in subject.chosen])
    keys = [subject.keys[row] for row in subject.chosen]
    nearest = nearest_latents(latents, training, own=own)
    chosen = training[choose_neighbours(latents, training, nearest, keys, config.seed)]
    between = slerp(latents, chosen, 0.5)
    decoded, originals, done = [], [], 0
    with progress_bar("iFID", len(keys), "images") as advance:
        for rows, images in subject.batches():
            halfway = between[done : done + len(rows)].to(subject.device)
            decoded.append(extractor(to_uint8(decode(subject.autoencoder, halfway))).cpu())
            originals.append(extractor(to_uint8(images)).cpu())
            done += len(rows)
            advance(len(rows), "")
    return feature_distances(
        torch.cat(decoded), torch.cat(originals), extractor, config.seed, config.shrink_covariance, "i"
    )
