// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel service's device, /dev/wfpatch: says what it is, and attaches to processes.
 */
#include <linux/capability.h>
#include <linux/cpufeature.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "wfpatch.h"

static int wf_device_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

static long wf_device_info(void __user *where)
{
	struct wfpatch_info info;
	u32 size;

	if (get_user(size, (u32 __user *)where))
		return -EFAULT;
	if (size < sizeof(info))
		return -EINVAL;
	memset(&info, 0, sizeof(info));
	info.size = sizeof(info);
	info.uapi_version = WFPATCH_UAPI_VERSION;
	if (boot_cpu_has(X86_FEATURE_FSGSBASE))
		info.features |= WFPATCH_FEATURE_FSGSBASE;
	if (boot_cpu_has(X86_FEATURE_PTI))
		info.features |= WFPATCH_FEATURE_PTI;
	strscpy(info.version, WF_VERSION, sizeof(info.version));
	return copy_to_user(where, &info, sizeof(info)) ? -EFAULT : 0;
}

static long wf_device_attach(const void __user *where)
{
	struct wfpatch_attach arguments;
	int error = wf_copy_arguments(&arguments, sizeof(arguments), where);

	return error ? error : wf_attach(&arguments);
}

/* The number alone says what is asked for: the size stands in the structure, and may grow. */
static long wf_device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (_IOC_TYPE(command) != WFPATCH_IOC_MAGIC)
		return -ENOTTY;
	switch (_IOC_NR(command)) {
	case _IOC_NR(WFPATCH_IOC_INFO):
		return wf_device_info((void __user *)argument);
	case _IOC_NR(WFPATCH_IOC_ATTACH):
		return wf_device_attach((const void __user *)argument);
	default:
		return -ENOTTY;
	}
}

/* No compat_ioctl: the kernel answers 32-bit callers with ENOTTY. */
static const struct file_operations wf_device_operations = {
	.owner = THIS_MODULE,
	.open = wf_device_open,
	.unlocked_ioctl = wf_device_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice wf_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "wfpatch",
	.fops = &wf_device_operations,
	.mode = 0600,
	.groups = wf_attribute_groups,
};

static int __init wf_init(void)
{
	int error;

	wf_sampler_init();
	error = wf_trap_init();
	if (error)
		goto undo_sampler;
	error = misc_register(&wf_device);
	if (error)
		goto undo_trap;
	return 0;

undo_trap:
	wf_trap_exit();
undo_sampler:
	wf_sampler_exit();
	return error;
}

/* Each session counts the module: there is none any more, nor a breakpoint, nor a visit. */
static void __exit wf_exit(void)
{
	misc_deregister(&wf_device);
	wf_trap_exit();
	wf_sampler_exit();
}

module_init(wf_init);
module_exit(wf_exit);
MODULE_AUTHOR("The WfPatch authors");
MODULE_DESCRIPTION("Live patching of running programs, thread by thread");
MODULE_LICENSE("GPL");
MODULE_VERSION(WF_VERSION);
MODULE_INFO(uapi_version, __stringify(WFPATCH_UAPI_VERSION));
