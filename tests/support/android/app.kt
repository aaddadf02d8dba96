// Just enough of this package's API to type-check the sample.

package android.app
open class Activity : android.view.Context() { open fun onCreate(b: android.os.Bundle?) {}; open fun onDestroy() {}; val assets: android.content.res.AssetManager get() = TODO()
    fun runOnUiThread(f: () -> Unit) {}
    fun setContentView(v: android.view.View) {} }
