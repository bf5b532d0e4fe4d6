"""The five small backbones that come with the package: their clips, their objectives, the command that trains them."""
