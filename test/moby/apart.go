package main

// apart names the tests that no daemon passes in a host like ours, with the reason. What fails of them is not counted
// as run; whatever is not listed here counts.
var apart = map[string]string{
	"container.TestAttachDisconnectLeak":       ownDaemon,
	"container.TestCDISpecDirsAreInSystemInfo": ownDaemon,
	"container.TestContainerShmSize":           ownDaemon,
	"container.TestContainerCopyLeaksMounts":   "it mounts the host's /var with propagation rslave, and / must be a shared mount for that",
	"image.TestAPIImagesListManifests":         ownDaemon,
	"image.TestAPIImagesListSizeShared":        ownDaemon,
	"image.TestAPIImageHistoryCrossPlatform":   hub,
	"image.TestImagePullNonExisting":           hub,
	"image.TestSaveAndLoadPlatform":            hub,
	"image.TestSearchContentType":              hub,
	"system.TestDiskUsage":                     ownDaemon,
}

const (
	ownDaemon = "starts a dockerd of its own"
	hub       = "asks Docker Hub"
)
