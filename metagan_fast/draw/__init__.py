"""A page on this machine on which a person draws a class of images and sees a GAN adapt to it.

`studio` holds the GAN, `server` the addresses of the page, `guard` the rules for every request; `page` has the HTML,
the style and the script, which are served as they are.
"""
