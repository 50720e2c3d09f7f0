/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The library that late_loader.c loads.
 */
int answer(int number);

__attribute__((noinline)) int answer(int number)
{
	__asm__ volatile("" : "+r"(number));
	return number + 1;
}
