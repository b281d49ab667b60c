"""Registration of images to a reference: scenes by a homography, single parts by their pose."""
