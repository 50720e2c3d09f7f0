// SPDX-License-Identifier: GPL-3.0-or-later
// Preloaded, it takes the place of the C library's rand.
int rand(void)
{
	return 4242;
}
