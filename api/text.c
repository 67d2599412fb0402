/* SPDX-License-Identifier: MIT */
/* text.c - the numbers of the API family in words, and the version. Any thread. */
#include <stdlib.h>

#include "api/service.h"

#ifndef VMIMG_VERSION
#define VMIMG_VERSION "0.1.0"
#endif

const char *vmimg_strerror(uint32_t vmimg_return)
{
	switch (vmimg_return) {
	case VMIMG_OK: return "Completed with No Error (0)";
	case VMIMG_NOT_SUPPORTED: return "Not Supported (1)";
	case VMIMG_FAILED: return "Failed (2)";
	case VMIMG_TIMEOUT: return "Timeout (3)";
	case VMIMG_INVALID_PARAMETER: return "Invalid Parameter (4)";
	case VMIMG_INVALID_STATE: return "Invalid State (5)";
	case VMIMG_INVALID_TYPE: return "Invalid Type (6)";
	case VMIMG_JOB_STARTED: return "Parameters Checked - Job Started (4096)";
	case VMIMG_V_FAILED: return "Failed (32768)";
	case VMIMG_V_ACCESS_DENIED: return "Access Denied (32769)";
	case VMIMG_V_NOT_SUPPORTED: return "Not Supported (32770)";
	case VMIMG_V_UNKNOWN: return "Status is unknown (32771)";
	case VMIMG_V_TIMEOUT: return "Timeout (32772)";
	case VMIMG_V_INVALID_PARAMETER: return "Invalid parameter (32773)";
	case VMIMG_V_IN_USE: return "System is in use (32774)";
	case VMIMG_V_INVALID_STATE: return "Invalid state for this operation (32775)";
	case VMIMG_V_BAD_TYPE: return "Incorrect data type (32776)";
	case VMIMG_V_NOT_AVAILABLE: return "System is not available (32777)";
	case VMIMG_V_NO_MEMORY: return "Out of memory (32778)";
	case VMIMG_V_NOT_FOUND: return "Not found (32779)";
	default: return "unknown return value";
	}
}

const char *vmimg_version(void)
{
	return VMIMG_VERSION;
}

void vmimg_free(void *ptr)
{
	free(ptr);
}
