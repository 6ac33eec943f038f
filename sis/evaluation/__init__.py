# SPDX-License-Identifier: Apache-2.0
"""`sis eval`: somebody's folder of images, or an image set, becomes a table of scores by way of the whole workflow."""
