"""Pascal VOC: per image an XML file of boxes, and palette PNGs in which pixel value i is the XML's i-th object."""
