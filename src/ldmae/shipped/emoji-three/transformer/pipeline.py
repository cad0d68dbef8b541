"""The classes of this folder: they are those of the package ldmae."""

try:
    import ldmae
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "this model needs the package ldmae, which is not installed; in a clone of it type: pip install ."
    ) from error

AnyModel = ldmae.AnyModel
AutoencoderVMAE = ldmae.AutoencoderVMAE
LDMAEPipeline = ldmae.LDMAEPipeline
LightningDiTTransformer2DModel = ldmae.LightningDiTTransformer2DModel
OwnAutoencoder = ldmae.OwnAutoencoder
